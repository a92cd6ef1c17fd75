"""Encryption: who can read checkpoints. Its arguments are those of `conf/checkpoint/`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainkit.encryption.identity import identities_in_use, use_identity
from trainkit.encryption.recipient import Recipient
from trainkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Encryption:
    """Encrypts checkpoints for the owners of public keys, and reads those that are encrypted.

    Args:
        recipients: public keys, `age1...` or `ssh-ed25519 AAAA...`: each can read alone. Empty: nothing is encrypted.
        identity: a file with the secret key that reads, for this process from here on; None: the file that the
            environment variable TRAINKIT_IDENTITY names, if it does.

    Raises:
        ConfigError: for what is no public key, and a file that holds no secret key.
    """

    recipients: Sequence[str] = ()
    identity: Path | None = None

    def __post_init__(self) -> None:
        if isinstance(self.recipients, str):
            raise ConfigError(f"checkpoint.recipients={self.recipients}: must be a list: [{self.recipients}]")
        self.public_keys()
        use_identity(self.identity)

    def public_keys(self) -> tuple[Recipient, ...]:
        """The recipients, each once.

        Raises:
            ConfigError: naming the one that is none.
        """
        return recipients_of(self.recipients, "checkpoint.recipients")

    def check(self, *, rewinds: bool) -> None:
        """Checks that a run can read what it must, and uses the identity in this process.

        Args:
            rewinds: whether it returns to its own checkpoints.

        Raises:
            ConfigError: it does, and no identity in use belongs to a recipient.
        """
        use_identity(self.identity)  # one that was copied to this process has not been made in it
        if rewinds and self.recipients and not self._is_readable():
            raise ConfigError(
                "nonfinite=rewind reads the run's checkpoints, which are encrypted: give checkpoint.identity=FILE with "
                "the secret key of a recipient, or nonfinite=stop or skip"
            )

    def _is_readable(self) -> bool:
        texts = [key.text for key in self.public_keys()]
        return any(identity.recipient.text in texts for identity in identities_in_use())

    def describe(self) -> str | None:
        """A line for the start of a run; None where nothing is encrypted."""
        keys = self.public_keys()
        if not keys:
            return None
        rest = "" if self._is_readable() else "; to resume from them, give checkpoint.identity=FILE"
        return f"checkpoints are encrypted for {', '.join(key.text for key in keys)}{rest}"


def recipients_of(texts: Sequence[str], key: str) -> tuple[Recipient, ...]:
    """Reads public keys, each once.

    Args:
        texts: the keys.
        key: how messages call them, such as `--recipient`.

    Raises:
        ConfigError: naming the one that is none.
    """
    found = []
    for number, text in enumerate(texts):
        try:
            found.append(Recipient.parse(str(text)))
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{key}[{number}]: {error}") from None
    return tuple(dict.fromkeys(found))
