"""Open files: each connection of a rank is one, and a process may have few of them."""

import resource

_EACH, _BESIDE = 4, 512
"""Files for each rank of the job: benchmarks/scale.py counts 1.2, and 3 where TORCH_GLOO_LAZY_INIT=0 connects all pairs.
And those for all else, such as data and libraries."""


def allow_open_files(world_size: int) -> str | None:
    """Raises this process's own limit of open files (`ulimit -n`, often 1024), as far as the system lets it.

    Args:
        world_size: processes of the job.

    Returns:
        A warning where the system allows fewer than a job of this size may need; None: there are enough.

    Example:
        >>> allow_open_files(2) is None
        True
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _EACH * world_size + _BESIDE
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return None
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == needed:
        return None
    return (
        f"a rank of {world_size} may need {needed} open files, and this machine allows {hard}: raise its hard limit "
        f"(ulimit -Hn, LimitNOFILE= of the service, /etc/security/limits.conf)"
    )
