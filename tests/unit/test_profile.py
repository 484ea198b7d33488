from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgekit import codec, host, profile, runtimes
from edgekit.cli import main
from edgekit.cli import profile as command
from edgekit.cli._formats import to_toml
from edgekit.errors import ProfileError
from tests.unit.boards import BOARDS, make

REQUIRED = {
    "jetson", "raspberry-pi-5", "raspberry-pi-4", "raspberry-pi-3",
    "intel-nuc", "x86-haswell", "android-arm64", "generic-cpu",
}  # fmt: skip
GOOD = """
name = "mine"
description = "d"
[hardware]
architecture = "aarch64"
isa = ["asimd"]
cores = 4
ram_mib = 1
storage_mib = 1
[[target]]
runtime = "onnxruntime"
precisions = ["int8"]
"""


def edgekit(*arguments: str | Path) -> int:
    return main(["profile", *map(str, arguments)])


def test_the_wanted_profiles_ship() -> None:
    assert set(profile.all_profiles()) >= REQUIRED
    assert profile.get("jetson-orin") == profile.get("jetson")
    assert profile.get("rpi5").name == "raspberry-pi-5"


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_shipped_profiles_use_what_edgekit_has(name: str) -> None:
    for target in profile.get(name).target:
        assert target.runtime in runtimes.names()
        assert target.precisions


def test_signedness_follows_the_instruction_set() -> None:
    for item in profile.all_profiles().values():
        vnni = "vnni" in " ".join(item.hardware.isa)
        for target in item.target:
            if item.hardware.architecture in ("aarch64", "armv7l"):
                assert (target.activation, target.reduce_range) == ("s8", False)
            else:
                assert target.reduce_range is not vnni, "u8*s8 saturates on x86 without VNNI"
                assert target.activation == "u8" or item.name == "generic-cpu"


def test_openvino_faults_are_avoided() -> None:
    for item in profile.all_profiles().values():
        for target in item.target:
            if target.runtime == "openvino":
                assert target.options["INFERENCE_PRECISION_HINT"] == "f32"
                assert item.hardware.cpu not in ("Cortex-A72", "Cortex-A53")
                assert item.hardware.architecture == "x86_64" or target.minimum >= "2026.4"


def test_every_shipped_file_explains_itself() -> None:
    for path in profile.folder().glob("*.toml"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# "), path
        assert re.search(r"^#.*\n(#.*\n)*\[\[target\]\]", text, re.MULTILINE), f"{path}: say why this engine"


def test_schema_is_in_sync_and_accepts_what_ships() -> None:
    path = profile.folder() / "schema.json"
    assert path.read_text(encoding="utf-8") == command.schema_text(), (
        "run: edgekit profile schema > device-profiles/schema.json"
    )
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for item in profile.all_profiles().values():
        validator.validate(codec.to_plain(item))
    described = schema["properties"]["target"]["items"]["properties"]["reduce_range"]["description"]
    assert "VNNI" in described


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "mine"', "", 'missing value for field "name"'),
        ('name = "mine"', 'name = "Mine!"', "bad name"),
        ('name = "mine"', 'name = "mine"\ncolour = "red"', "colour"),
        ('["asimd"]', '["asimdd"]', "unknown feature 'asimdd'"),
        ('["asimd"]', '"asimd"', r"hardware.isa should be tuple\[str, ...\], is a single value"),
        ("cores = 4", "cores = 0", "hardware.cores must be positive"),
        ("cores = 4", 'cores = "four"', "hardware.cores should be int, is 'four'"),
        ('"int8"', '"int7"', "target.precisions should be .*int8.*is \\('int7',\\)"),
        ("[[target]]", "[[targets]]", "targets"),
        ("[[target]]", "[budget]\naccuracy_ratio = 1.5\n[[target]]", "budget.accuracy_ratio cannot be 1.5"),
        ("[[target]]", "[verify]\ngolden_samples = 0\n[[target]]", "golden_samples"),
        ("[[target]]", "[verify]\nmin_reference_agreement = 2.0\n[[target]]", "tolerance"),
        ("[hardware]", "[hardware", "not valid TOML"),
    ],
)
def test_bad_files_say_what_and_where(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ProfileError, match=words) as caught:
        profile.read(path)
    assert caught.value.message.startswith(str(path))


def test_an_encrypted_models_engine_is_not_kept_on_a_disk(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = GOOD + '\n[[target]]\nruntime = "tensorrt"\nprecisions = ["int8"]\noptions = { cache = "disk" }\n'
    path.write_text(text)
    with pytest.raises(ProfileError, match="weights on a disk") as caught:
        profile.read(path)
    assert "security.encrypt = false" in caught.value.hint
    path.write_text(text + "[security]\nencrypt = false\n")
    assert profile.read(path).target[-1].options == {"cache": "disk"}


def test_a_profile_needs_an_engine(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("target = []\n" + GOOD.split("[[target]]")[0])
    with pytest.raises(ProfileError, match=r"no \[\[target\]\]"):
        profile.read(path)


def test_unknown_names_suggest_the_nearest() -> None:
    for wrong, near in (
        ("raspbery-pi-5", "raspberry-pi-5"),
        ("jetson-nano", "jetson"),
        ("intel_nuc", "intel-nuc"),
    ):
        with pytest.raises(ProfileError) as caught:
            profile.get(wrong)
        assert f"did you mean '{near}" in caught.value.hint
    with pytest.raises(ProfileError, match="No such file"):
        profile.get("./nowhere.toml")


def test_a_path_is_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert profile.get(str(path)).name == "mine"


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_boards_are_recognised(name: str, tmp_path: Path) -> None:
    board = BOARDS[name]
    here = host.read(make(board, tmp_path), board.machine)
    assert (here.cpu, here.cores, here.ram_mib) == (board.cpu, board.cores, board.ram_mib)
    assert here.board == board.model
    assert here.storage_mib > 0
    match = profile.detect(here)
    assert match.name == board.profile
    assert profile.unmet_by(match, here) == []


def test_this_machine_is_described() -> None:
    here = host.read()
    assert here.cores > 0
    assert here.ram_mib > 0
    assert here.cpu
    assert profile.unmet_by(profile.detect(here), here) == []


def test_unmet_names_every_lack() -> None:
    assert host.unmet("any", [], "riscv64", []) == []
    assert host.unmet("x86_64", ["avx2", "avx512_vnni|avx_vnni"], "x86_64", ["avx2", "avx_vnni"]) == []
    assert host.unmet("aarch64", ["asimddp", "a|b"], "x86_64", []) == [
        "needs aarch64, this is x86_64",
        "asimddp missing",
        "a|b missing",
    ]


def test_only_x86_without_vnni_saturates(tmp_path: Path) -> None:
    for name, board in BOARDS.items():
        here = host.read(make(board, tmp_path / name), board.machine)
        assert host.saturates(here) is (board.machine == "x86_64" and board.profile != "intel-nuc")


def test_nothing_to_read_is_not_an_error(tmp_path: Path) -> None:
    here = host.read(tmp_path, "riscv64")
    assert (here.cpu, here.board, here.isa, here.cores, here.ram_mib) == ("", "", (), 0, 0)
    assert profile.detect(here).name == "generic-cpu"


@pytest.mark.parametrize("name", sorted(BOARDS))
def test_detect_writes_a_profile_that_can_be_used(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board, output = BOARDS[name], tmp_path / "here.toml"
    root = make(board, tmp_path / "root")
    assert edgekit("detect", "--root", root, "--machine", board.machine, "--output", output) == 0
    assert board.profile in capsys.readouterr().out
    written = profile.get(str(output))
    here = host.read(root, board.machine)
    assert written == profile.of_host(here, profile.get(board.profile))
    assert written.hardware.ram_mib == board.ram_mib
    assert profile.unmet_by(written, here) == []


def test_detect_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = BOARDS["Raspberry Pi 5 Model B Rev 1.0"]
    edgekit("detect", "--root", make(board, tmp_path), "--machine", board.machine, "--json")
    got: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert got["matches"] == "raspberry-pi-5"
    assert got["host"]["isa"] == ["asimd", "asimddp", "asimdhp", "fphp"]
    assert codec.from_plain(profile.Profile, got["profile"], what="out").hardware.cores == 4


def test_detect_refuses_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (("--root", tmp_path), "has no folder proc"),
        (("--output", tmp_path / "nowhere" / "x.toml"), "cannot write"),
    ):
        assert edgekit("detect", *arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert words in err
        assert "  hint: " in err


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    edgekit("list")
    table = capsys.readouterr().out
    assert all(name in table for name in REQUIRED)
    edgekit("list", "--json")
    assert {item["name"] for item in json.loads(capsys.readouterr().out)} == set(profile.all_profiles())
    edgekit("show", "jetson-orin")
    assert capsys.readouterr().out == (profile.folder() / "jetson.toml").read_text(encoding="utf-8")
    edgekit("show", "jetson-orin", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert codec.from_plain(profile.Profile, shown, what="out") == profile.get("jetson")


def test_strings_of_any_kind_survive_toml(tmp_path: Path) -> None:
    odd = 'quote " backslash \\ tab \t newline \n del \x7f é 漢'
    item = dataclasses.replace(profile.get("jetson"), description=odd)
    path = tmp_path / "odd.toml"
    path.write_text(to_toml(item), encoding="utf-8")
    assert profile.read(path) == item
