"""`edgekit inspect` tells what a bundle takes besides tensors."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit import cli
from tests.support.bundles import make_variant, tiny_bundle
from tests.unit.bundle.test_steps import SOUND, config


def test_steps_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, keys = tiny_bundle(tmp_path, variants=[make_variant(config(SOUND))])
    trusted = tmp_path / "builder.pub"
    trusted.write_bytes(keys.signer.public().to_pem())
    assert cli.main(["inspect", str(path), "--trust", str(trusted)]) == 0
    line = "audio/wav through wav, resample, peak, length, mfcc, top-k"
    assert line in capsys.readouterr().out
