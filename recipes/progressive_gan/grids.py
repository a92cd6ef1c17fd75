"""Grids: the pictures that a run logs at its evaluations, and an animation of them at its end."""

from torch import Tensor

from trainkit import Runtime
from trainkit.data import Datasets
from trainkit_recipes.progressive_gan.pictures import CELL, animate, grid
from trainkit_recipes.progressive_gan.real_images import some_of


class Grids:
    """Logs grids of samples, and of training images once for each resolution.

    Args:
        runtime: of the run.
        datasets: with the training images.
        resolution: the highest of the run: all grids have cells of one size.
    """

    def __init__(self, runtime: Runtime, datasets: Datasets, resolution: int) -> None:
        self.runtime, self.datasets, self.cell = runtime, datasets, max(CELL, resolution)
        self._shown_real = 0  # the resolution

    def log_samples(self, images_BCHW: Tensor, columns: int | None) -> None:
        """Logs samples; see `pictures.grid`."""
        self.runtime.tracker.image(self.runtime.step, "samples", grid(images_BCHW, self.cell, columns))

    def log_real(self, resolution: int, num: int) -> None:
        """Logs `num` training images, unless those of the resolution were logged last."""
        if self._shown_real != resolution and self.runtime.ranks.is_main and len(self.datasets.train):
            self._shown_real = resolution
            real = some_of(self.datasets.train, resolution, num)
            self.runtime.tracker.image(self.runtime.step, "real images", grid(real, self.cell))

    def animate(self) -> None:
        """Writes growth.gif, of all grids of samples, and growth_one_latent.gif, of their first image."""
        run_dir = self.runtime.run_dir
        if run_dir is None or not self.runtime.ranks.is_main:
            return
        frames = sorted((run_dir / "media" / "samples").glob("*.png"))
        if len(frames) < 2:
            self.runtime.tracker.message("no animation: tracking.media=false, or a single grid was drawn")
            return
        animate(frames, run_dir / "growth.gif")
        animate(frames, run_dir / "growth_one_latent.gif", crop=self.cell, scale=max(1, 256 // self.cell))
        self.runtime.tracker.message(
            f"growth of the samples: {run_dir / 'growth.gif'}, growth_one_latent.gif beside it"
        )
