"""The Hugging Face Hub, which may be out of reach."""

from __future__ import annotations


def out_of_reach(repository: str) -> bool:
    """Whether the Hub gives no answer about a repository, found out by one request.

    Its client tries for half a minute, for each file. Loaders are told ``local_files_only`` instead: what is in the cache is
    found all the same. True also in the Hub's offline mode.
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
