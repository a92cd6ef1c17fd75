"""What happens to parameters besides the optimizer's own update: schedules and averages."""

from trainkit.optim.ema import Average
from trainkit.optim.schedule import Schedule

__all__ = ["Average", "Schedule"]
