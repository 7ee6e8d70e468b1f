"""The Hugging Face Hub, which may be out of reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmdit.errors import UserError, first_line


def out_of_reach(repository: str) -> bool:
    """Whether the Hub gives no answer about a repository, found out by one request.

    The Hub's client tries for half a minute per file. If this returns True, give loaders ``local_files_only``: they still
    find what is in the cache. True also in the Hub's offline mode.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(repository, timeout=10)
    except (HfHubHTTPError, ValueError):
        return False  # an answer: no such repository, no access to it, no such name
    except Exception:  # of whichever HTTP library the client uses
        return True
    return False


def is_hub_id(name: str) -> bool:
    """Whether a name can be a repository's, "owner/name"."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def fetch(name: str, what: str, patterns: Sequence[str], *, needs: str, revision: str | None = None) -> Path:
    """Fetch the files of a repository, from the Hub or from its cache; returns the folder ``snapshots/<commit>``.

    Args:
        name: "owner/name".
        what: what messages call it, such as the option that named it.
        patterns: of the files.
        needs: how messages list the files that a folder of one's own needs.
        revision: a commit; None = the newest.

    Raises:
        UserError: it can't be fetched and is not in the cache; the message says how to go on without a connection.
    """
    from huggingface_hub import snapshot_download

    offline = out_of_reach(name)
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=["*.fp16.safetensors"],  # other weights under other names
                local_files_only=offline,
            )
        )
    except Exception as error:  # the client raises the types of whichever HTTP library it uses
        reason = "the Hub can't be reached" if offline else first_line(error)
        raise UserError(
            f"{what} {name!r} can't be fetched from the Hub and is not in its cache ({reason}): connect once, or put its "
            f"files ({needs}) into a folder, for instance by 'hf download {name} --local-dir FOLDER' on a machine with a "
            "connection, and give FOLDER"
        ) from None
