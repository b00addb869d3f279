"""Scorers on the Hugging Face hub: a folder from there, and a folder to there."""

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def local_folder(source: Path | str, files: list[str], revision: str | None = None) -> Path:
    """The folder of some files: `source` itself, or what the hub has under that id.

    Args:
        source: a folder, or a hub id `owner/name` where there is no such folder.
        files: to be had from the hub.
        revision: branch, tag or commit on the hub; its main branch without.

    Raises:
        ValueError: if a hub id cannot be had, or a revision is given for a folder.
    """
    there = Path(source).is_dir()
    if there and revision is not None:
        raise ValueError(f"revision is {revision!r}, but {source} is a folder, which has none")
    if there or not _HUB_ID.fullmatch(str(source)):
        return Path(source)
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{str(source)!r} is no folder, and the hub does not give it: {first}") from error


def push(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Upload a folder and give the address of the commit.

    Raises:
        ValueError: if `repo` is no hub id.
    """
    if not _HUB_ID.fullmatch(repo):
        raise ValueError(f"repo is {repo!r}, expected a hub id such as 'owner/name'")
    hub = HfApi()
    hub.create_repo(repo, private=private, exist_ok=True)
    return str(hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)
