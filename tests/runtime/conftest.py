import pytest
import torch

from hf_bitdistill import pack
from students import make_student


@pytest.fixture
def saved(tmp_path):
    """Saves a student, packed unless told otherwise, and returns `(online student, folder)`."""

    def save(model_type="llama", packed=True, **kwargs):
        student = make_student(model_type, **kwargs)
        folder = tmp_path / f"{model_type}-{'packed' if packed else 'online'}"
        # In the student's own dtype: what is compared with it is not rounded.
        bits = 32 if student.dtype == torch.float32 else 16
        (pack(student, table_bits=bits) if packed else student).save_pretrained(folder)
        return student, folder

    return save
