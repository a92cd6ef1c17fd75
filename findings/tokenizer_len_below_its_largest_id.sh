#!/usr/bin/env bash
# transformers 5.23.0 with tokenizers 0.23.3: BertTokenizerFast of a vocab.txt in which a line stands twice.
#
# A good guess: len(tokenizer) is one more than the largest id, so that model.resize_token_embeddings(len(tokenizer))
# makes a table that holds every id. Published vocabularies with a line twice exist, and BERT's own reader takes the
# last of them.
# Seen: ids are line numbers and the last line of a token counts, but len() counts different tokens: 9 lines, of which
# one stands twice, give len 8 and the id 8.
# trainkit sizes its table by the largest id: trainkit/data/tokenizer.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
printf '%s\n' '[PAD]' '[UNK]' '[CLS]' '[SEP]' '[MASK]' a b a c >vocab.txt
venv/bin/python - 2>/dev/null <<'P' | tee seen
import transformers
tokenizer = transformers.BertTokenizerFast(vocab="vocab.txt")
print("len", len(tokenizer), "ids of 'c'", tokenizer.encode("c"), "ids of 'a'", tokenizer.encode("a"))
P
diff seen - <<'T'
len 8 ids of 'c' [2, 8, 3] ids of 'a' [2, 7, 3]
T
