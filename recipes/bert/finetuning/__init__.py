"""Fine-tuning of a BERT: classification, regression, token classification, question answering, embeddings."""
