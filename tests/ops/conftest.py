import pytest

from hf_bitdistill.ops import binding


@pytest.fixture(params=["native", "torch"])
def backend(request, monkeypatch):
    """Every test that asks for it runs with the native library and with the torch fallback."""
    library, reason = binding.load()
    if request.param == "native":
        if library is None:
            pytest.skip(reason)
    else:
        monkeypatch.setattr(binding, "library", lambda: None)
    return request.param


@pytest.fixture
def library():
    """The native library; its instruction set is put back afterwards."""
    library, reason = binding.load()
    if library is None:
        pytest.skip(reason)
    isa = library.isa
    yield library
    library.set_isa(isa)
