"""How commands end when another library cannot write."""

import errno
import os

import pytest

from modeling_cllm4rec.commands.command_line import run_command


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line(number, capsys):
    def work():
        raise OSError(number, os.strerror(number), "runs/mine/model.safetensors")

    assert run_command("cllm4rec nothing", work) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("cllm4rec nothing: error: there is no room on the disk (runs/mine/model.safetensors): ")
    assert printed.count("\n") == 1


def test_another_system_error_keeps_its_traceback():
    def work():
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
        run_command("cllm4rec nothing", work)
