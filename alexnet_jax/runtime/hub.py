"""The Hugging Face Hub: the only module that uses huggingface_hub, which is an extra."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from alexnet_jax.runtime.errors import UserError

PREFIX = "hf://"


def is_address(text: str) -> bool:
    """Whether `text` names a model of the Hub: 'hf://OWNER/NAME'."""
    return text.startswith(PREFIX)


def download(address: str, names: Sequence[str]) -> Path:
    """The local folder with files of a model; what is there already is not loaded again.

    Args:
      address: 'hf://OWNER/NAME', or 'hf://OWNER/NAME@REVISION'.
      names: of the files. Those that the model does not have are left out.

    Raises:
      UserError: there is no such model, or no network; or huggingface_hub is not installed.
    """
    library = _library()
    name, _, revision = address.removeprefix(PREFIX).partition("@")
    with _one_line(library, address, "read"):
        found = library.snapshot_download(name, revision=revision or None, allow_patterns=names)
    return Path(found)


def upload(folder: Path, name: str, *, private: bool) -> str:
    """Makes the model `name`, OWNER/NAME, of the files in `folder`; returns its address.

    Raises:
      UserError: there is no network or no permission; or huggingface_hub is not installed.
    """
    library, name = _library(), name.removeprefix(PREFIX)
    with _one_line(library, f"{PREFIX}{name}", "written"):
        library.create_repo(name, private=private, exist_ok=True)
        library.upload_folder(repo_id=name, folder_path=folder)
    return f"{PREFIX}{name}"


def _library() -> ModuleType:
    try:
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            'this needs huggingface_hub; pip install "alexnet-jax[hub]", or pip install '
            "huggingface_hub"
        ) from None
    return huggingface_hub


@contextmanager
def _one_line(library: ModuleType, address: str, what: str) -> Iterator[None]:
    errors = library.errors
    try:
        yield
    except errors.HFValidationError as error:
        reason = f"give it as {PREFIX}OWNER/NAME: {_first_line(error)}"
    except errors.RevisionNotFoundError:
        reason = "it has no such revision"
    except (errors.RepositoryNotFoundError, errors.LocalTokenNotFoundError):
        reason = "there is no such model, or it is not for you: log in with `hf auth login`"
    except errors.LocalEntryNotFoundError as error:
        reason = f"there is no network, and no copy of it here ({_cause(error)})"
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        reason = f"the Hub refuses (status {status}): {_first_line(error)}"
        if status in (401, 403):
            reason = "you may not: log in with `hf auth login`, as one who may"
    except Exception as error:  # a network has many ways to fail, each library its own names
        reason = f"{type(error).__name__}: {_first_line(error)}"
    else:
        return
    raise UserError(f"{address} cannot be {what}: {reason}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _cause(error: BaseException) -> str:
    return _first_line(error.__cause__ or error)
