"""`trainkit data augment`: a data set of generated, labelled images, and whether a classifier gains from them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import console, rank
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.enlarge.generated import Generated
    from trainkit.recipe import Recipe

EXAMPLES = """\
examples:
  trainkit data augment runs/digits more_digits --num 5000
  trainkit data augment runs/digits eights --num 500 --classes 8
  trainkit data augment runs/digits more_digits --num 5000 --compare ~/digits
"""


NUM_SEEDS, EPOCHS = 5, 10


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Adds `augment` to the commands of `data`, of argparse; returns its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "augment",
        help="write generated, labelled images of a trained run",
        description="Write generated images of a run that has learnt to generate, as many of each class, as PNGs. The "
        "same command continues what was interrupted. With --compare, say whether a small classifier gains from them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="RUN", help="a run directory, or one of its checkpoints/step_*")
    parser.add_argument("output", metavar="OUT", type=Path, help="folder to write to; empty, or a part of the same")
    parser.add_argument("--num", type=int, required=True, metavar="N", help="images, of all classes together")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="only these; default: all, in turns")
    parser.add_argument("--start", type=int, default=0, help="number of the first image; others give other images")
    parser.add_argument(
        "--labels",
        choices=("folders", "json"),
        default="folders",
        help="a folder for each class (default), or dataset.json",
    )
    parser.add_argument(
        "--compare",
        metavar="DATA",
        help="train a small classifier on these real images (a folder or .zip file with class folders or dataset.json, "
        "whichever the run has), on the generated ones and on both, and print the accuracy on those that the run has "
        "held out",
    )
    parser.add_argument("--seeds", type=int, help=f"of --compare: classifiers of each kind (default {NUM_SEEDS})")
    parser.add_argument("--epochs", type=float, help=f"of --compare: passes over the real images (default {EPOCHS})")
    parser.set_defaults(run=_run)
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from trainkit.enlarge.generated import Generated
    from trainkit.job import load_recipe

    if rank():
        raise ConfigError("trainkit data augment runs in one process: type it without torchrun")
    wanted = Generated(
        num=arguments.num, classes=tuple(arguments.classes), start=arguments.start, layout=arguments.labels
    )
    _settle(arguments)
    overrides = _data_of(arguments) if arguments.compare is not None else []
    recipe = load_recipe(arguments.path, overrides, with_data=bool(overrides), trust=arguments.trust)
    try:
        if arguments.compare is not None and not (recipe.datasets is not None and recipe.datasets.classes):
            raise ConfigError(f"--compare {arguments.compare}: the run was trained without classes; leave it out")
        _write(recipe, wanted, arguments)
        if arguments.compare is not None:
            _compare(recipe, wanted, arguments)
    finally:
        recipe.runtime.close()


def _data_of(arguments: argparse.Namespace) -> list[str]:
    """The overrides that make a recipe read the images of --compare, whose labels may lie elsewhere than the run's."""
    from typing import get_args

    from trainkit import checkpoint
    from trainkit.data.image_sources import find_source
    from trainkit.data.labels import From, where_classes_are

    path = Path(arguments.compare).expanduser()
    values = checkpoint.read_manifest(checkpoint.find(Path(arguments.path).expanduser()))["values"]
    labels: Any = ((values.get("config") or {}).get("data") or {}).get("labels")
    overrides = [f"data.path={path}"]
    classes = values.get("recipe", {}).get("classes")
    if classes and labels in get_args(From):  # other data may have a key of that name
        found = where_classes_are(find_source(path), classes, labels)
        overrides += [f"data.labels={found}"] if found != labels else []
    return overrides


def _settle(arguments: argparse.Namespace) -> None:
    """Checks the options of --compare before anything is generated, and places the defaults."""
    from trainkit.enlarge.comparison import require_usable

    for name in ("seeds", "epochs"):
        if arguments.compare is None and getattr(arguments, name) is not None:
            raise ConfigError(f"--{name} {getattr(arguments, name)}: has no effect without --compare; leave it out")
    arguments.seeds = NUM_SEEDS if arguments.seeds is None else arguments.seeds
    arguments.epochs = EPOCHS if arguments.epochs is None else arguments.epochs
    require_usable(arguments.seeds, arguments.epochs)


def _write(recipe: "Recipe", wanted: "Generated", arguments: argparse.Namespace) -> None:
    from trainkit import checkpoint

    directory = checkpoint.find(Path(arguments.path).expanduser())
    made_by = {"run": str(directory.resolve()), "position": recipe.runtime.position}
    before = wanted.write(recipe, arguments.output, made_by)
    known = recipe.datasets.classes if recipe.datasets is not None else ()
    num_classes = len(arguments.classes or known)
    of = f" of {num_classes} classes" if num_classes else ""
    kept = f", {before:,} of them there before" if before else ""
    print(f"{wanted.num:,} images{of} in {arguments.output}{kept}")


def _compare(recipe: "Recipe", wanted: "Generated", arguments: argparse.Namespace) -> None:
    from trainkit.enlarge.comparison import compare
    from trainkit.enlarge.samples import of_dataset, of_folder

    datasets = recipe.datasets
    assert datasets is not None
    generated = of_folder(arguments.output, wanted, datasets.classes)
    resolution = generated.images.shape[-1]
    found = compare(
        of_dataset(datasets.train, resolution),
        generated,
        of_dataset(datasets.held_out, resolution),
        len(datasets.classes),
        num_seeds=arguments.seeds,
        num_epochs=arguments.epochs,
    )
    from rich.table import Table

    num = next(iter(found.is_right.values())).shape[1]
    seeds = f"{arguments.seeds} seed{'s' if arguments.seeds > 1 else ''}"
    table = Table(title=f"a small classifier on {num:,} held-out images, {seeds}", title_justify="left", box=None)
    for column in ("trained on", "images", "accuracy", "standard deviation"):
        table.add_column(column, justify="left" if column == "trained on" else "right")
    for row in found.rows():
        table.add_row(*row)
    console().print(table)
    print(found.verdict())
