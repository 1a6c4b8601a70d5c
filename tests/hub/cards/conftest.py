"""What a card is of."""

import pytest

from students import make_student


@pytest.fixture(scope="module")
def config():
    """Of a student, as its folder has it."""
    student = make_student()
    student.config.architectures = ["LlamaForCausalLM"]
    return student.config
