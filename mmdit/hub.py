"""The Hugging Face Hub, which may be out of reach."""

from __future__ import annotations


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
