"""The double of the Hub as the client's endpoint."""

import pytest
from hub_double import OTHER_TOKEN, TOKEN, Hub

from hf_bitdistill.hub import upload as upload_module
from hf_bitdistill.verify import verify
from students import make_student


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A double with the users `owner`, who is logged in, and `other`; the client's cache is empty."""
    import huggingface_hub
    import transformers.utils.hub
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    with Hub() as double:
        double.add_user("owner", TOKEN)
        double.add_user("other", OTHER_TOKEN)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # What the client reads from the environment when it is imported.
        for name, value in {
            "ENDPOINT": double.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": double.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        # And what keeps the endpoint that it was made with.
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", double.url)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        disable_progress_bars()
        yield double
        enable_progress_bars()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Before an upload is tried again, which it is three times."""
    monkeypatch.setattr(upload_module, "_WAITS", (0.01, 0.01, 0.01))


@pytest.fixture
def student():
    """With as many tokens as `tiny_tokenizer`."""
    return make_student(vocab_size=384)


@pytest.fixture(autouse=True)
def quick_checks(request, monkeypatch, warm_worker):
    """Without the processes in which both loaders are tried, but for tests that are marked `both_loaders`."""
    from hf_bitdistill.hub import push_checks

    if "both_loaders" not in request.keywords:
        monkeypatch.setattr(push_checks, "verify", lambda model, answers=True: verify(model, answers=False))


@pytest.fixture
def offline(monkeypatch):
    """Call it to take the client off the net."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
