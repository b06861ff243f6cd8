from __future__ import annotations

from pathlib import Path

import pytest
from support.jetson_root import NANO, write_jetson_root

from trt_hspan.errors import HspanError, UsageError
from trt_hspan.jetson import advice as advice_module
from trt_hspan.jetson.advice import advice_for_board, installed_package
from trt_hspan.jetson.boards import BOARDS, board_from_name, chosen_board, detected_board
from trt_hspan.machine.jetson import DeviceFacts, GpuClock, PowerMode, device_from_root
from trt_hspan.version import __version__

ZRAM = "".join(f"/dev/zram{n}                              partition\t650164\t\t0\t\t5\n" for n in range(6))
GIB = 1 << 30


def test_the_facts_of_a_device_are_read_from_its_files(tmp_path: Path) -> None:
    facts = device_from_root(write_jetson_root(tmp_path, swaps=ZRAM))
    assert facts.model == NANO
    assert facts.modules == ("p3768-0000", "p3767-0005")
    assert facts.release == "36.4.3"
    assert (facts.memory_bytes, facts.available_bytes) == (7802000 * 1024, 6300000 * 1024)
    assert facts.power_mode == PowerMode(number=0, name="15W")
    assert dict(facts.power_modes) == {0: "15W", 1: "25W", 2: "MAXN_SUPER", 3: "7W"}
    assert facts.gpu_clock is not None
    assert (facts.gpu_clock.min_hz, facts.gpu_clock.max_hz) == (306000000, 612000000)
    assert not facts.gpu_clock.is_fixed
    assert len(facts.swaps) == 6
    assert all(swap.in_memory and swap.size_bytes == 650164 * 1024 for swap in facts.swaps)


@pytest.mark.parametrize("folder", ["17000000.ga10b", "gpu-gpc-0"])
def test_the_clock_is_found_where_each_system_has_it(tmp_path: Path, folder: str) -> None:
    place = tmp_path / "sys/class/devfreq" / folder
    place.mkdir(parents=True)
    for name in ("min_freq", "max_freq"):
        (place / name).write_text("1300500000\n")
    assert device_from_root(tmp_path).gpu_clock == GpuClock(min_hz=1300500000, max_hz=1300500000)


def test_a_device_is_named_by_its_model_or_by_its_modules_alone() -> None:
    assert DeviceFacts(model=NANO).has_device_tree
    assert DeviceFacts(modules=("p3767-0005",)).has_device_tree
    assert not DeviceFacts(release="36.4.3").has_device_tree
    assert str(PowerMode(number=3, name=None)) == "mode 3"


def test_a_file_that_cannot_be_a_description_is_read_no_further_than_one_mebibyte(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"x" * ((1 << 20) + 9))
    assert device_from_root(tmp_path).model == "x" * (1 << 20)


def test_without_a_choice_the_mode_is_the_one_set_at_the_start(tmp_path: Path) -> None:
    facts = device_from_root(write_jetson_root(tmp_path, status=None))
    assert str(facts.power_mode) == "25W"


def test_what_is_not_there_or_nonsense_is_not_known(tmp_path: Path) -> None:
    assert device_from_root(tmp_path / "nothing") == DeviceFacts()
    root = write_jetson_root(tmp_path, status="pmode:zzz", nvpmodel="\x00<<< POWER_MODEL ID= >", release="R?")
    (root / "proc/meminfo").write_bytes(b"MemTotal: many kB\n\xff\xfe")
    (root / "sys/class/devfreq/17000000.gpu/min_freq").write_text("-1")
    facts = device_from_root(root)
    assert (facts.power_mode, facts.memory_bytes, facts.gpu_clock, facts.release) == (None, None, None, None)


@pytest.mark.parametrize(
    ("modules", "model", "gib", "name"),
    [
        (("nvidia,p3767-0004",), "NVIDIA Jetson Orin Nano Developer Kit", 3.3, "orin-nano-4g"),
        (("nvidia,p3767-0003",), "some carrier", 7.4, "orin-nano-8g"),
        (("nvidia,p3767-0001",), "NVIDIA Jetson Orin Nano Developer Kit", 7.4, "orin-nx-8g"),
        (
            ("nvidia,p3767-0000",),
            "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
            15.3,
            "orin-nx-16g",
        ),
        (("nvidia,p3701-0000",), "Jetson AGX Orin", 29.8, "agx-orin-32g"),
        (("nvidia,p3701-0005",), "NVIDIA Jetson AGX Orin Developer Kit", 61.4, "agx-orin-64g"),
        (("nvidia,p4071-0000+p3834-0008",), "NVIDIA Jetson AGX Thor Developer Kit", 122.9, "agx-thor"),
        ((), "NVIDIA Jetson Orin NX Developer Kit", 7.3, "orin-nx-8g"),
        ((), "NVIDIA Jetson AGX Orin Developer Kit", 29.8, "agx-orin-32g"),
    ],
)
def test_a_board_is_found_by_its_module_or_its_name_and_its_memory(
    tmp_path: Path, modules: tuple[str, ...], model: str, gib: float, name: str
) -> None:
    root = write_jetson_root(tmp_path, model=model, compatible=modules, memory_kib=int(gib * (1 << 20)))
    detection = detected_board(device_from_root(root))
    assert detection.board.name == name
    assert model in detection.why


@pytest.mark.parametrize(
    ("model", "gib", "part"),
    [
        ("NVIDIA Jetson T4000", 61.0, "is none of the known boards"),
        ("NVIDIA Jetson AGX Thor Developer Kit", 61.0, "is none of the known boards"),
        ("Raspberry Pi 5 Model B", 7.4, "is none of the known boards"),
    ],
)
def test_an_unknown_board_is_one_line_with_the_choices(
    tmp_path: Path, model: str, gib: float, part: str
) -> None:
    facts = device_from_root(
        write_jetson_root(tmp_path, model=model, compatible=(), memory_kib=int(gib * (1 << 20)))
    )
    with pytest.raises(HspanError, match=f"{model}.*{part}.*orin-nano-8g"):
        detected_board(facts)


def test_without_memory_several_boards_of_a_name_are_reported() -> None:
    with pytest.raises(HspanError, match="unknown memory may be several"):
        detected_board(DeviceFacts(model="NVIDIA Jetson Orin NX Developer Kit"))


def test_off_a_board_auto_asks_for_a_name_and_a_name_is_taken() -> None:
    with pytest.raises(HspanError, match=r"this is not a Jetson.*orin-nano-8g"):
        chosen_board("auto", DeviceFacts())
    assert chosen_board("agx-thor", DeviceFacts()).board.name == "agx-thor"
    with pytest.raises(UsageError, match="orin-nano-8g"):
        chosen_board("jetson", DeviceFacts())


def test_every_board_has_modules_of_its_own_or_another_memory() -> None:
    seen = {(module, board.memory_bytes) for board in BOARDS for module in board.modules}
    assert len(seen) == sum(len(board.modules) for board in BOARDS)


class TestAdvice:
    """What is said on an Orin Nano 8GB, whose figures are for the 625 MHz of its 15W mode."""

    nano = board_from_name("orin-nano-8g")
    disk = "/swapfile                               file\t\t8388604\t\t0\t\t-2\n"

    def advice(self, root: Path, **files: object) -> dict[str, tuple[str, ...]]:
        facts = device_from_root(write_jetson_root(root, **files))  # type: ignore[arg-type]
        return {note.what: note.commands for note in advice_for_board(self.nano, facts)}

    def test_nothing_where_nothing_is_wrong(self, tmp_path: Path) -> None:
        assert self.advice(tmp_path, clock=(612000000, 612000000), swaps=self.disk) == {}

    def test_a_slow_power_mode_with_the_command_that_ends_it(self, tmp_path: Path) -> None:
        advice = self.advice(tmp_path, clock=(408000000,) * 2, status="pmode:0003", swaps=self.disk)
        assert advice == {
            "in power mode 7W the GPU runs at 408 MHz at most, the floor is for 625 MHz (15W)": (
                "sudo nvpmodel -m 0",
            )
        }

    def test_a_mode_above_the_published_clock_is_no_fault(self, tmp_path: Path) -> None:
        advice = self.advice(tmp_path, clock=(918000000,) * 2, status="pmode:0001", swaps=self.disk)
        ((what, commands),) = advice.items()
        assert "power mode 25W the GPU may run at 918 MHz: faster" in what
        assert commands == ()

    def test_names_decide_where_the_clock_is_missing(self, tmp_path: Path) -> None:
        assert self.advice(tmp_path, clock=None, swaps=self.disk, status="pmode:0002") == {}
        advice = self.advice(tmp_path, clock=None, swaps=self.disk, status="pmode:0003")
        assert advice == {"power mode 7W is in force, the floor is for 15W": ("sudo nvpmodel -m 0",)}

    def test_a_clock_that_follows_the_load(self, tmp_path: Path) -> None:
        advice = self.advice(tmp_path, swaps=self.disk)
        assert advice == {
            "the GPU's clock follows the load, 306 to 612 MHz: times vary": ("sudo jetson_clocks",)
        }

    def test_zram_is_no_swap_for_a_build(self, tmp_path: Path) -> None:
        advice = self.advice(tmp_path, clock=(612000000,) * 2, swaps=ZRAM)
        ((what, commands),) = advice.items()
        assert what.startswith("0.0 GiB of swap on a disk, and 3.7 GiB of zram")
        assert commands == (
            "sudo systemctl disable --now nvzramconfig",
            "sudo fallocate -l 8G /swapfile",
            "sudo chmod 600 /swapfile",
            "sudo mkswap /swapfile",
            "sudo swapon /swapfile",
            "echo '/swapfile none swap sw 0 0' | sudo tee -a /etc/fstab",
        )

    def test_a_second_swap_file_has_another_name(self, tmp_path: Path) -> None:
        half = "/swapfile                               file\t\t4194300\t\t0\t\t-2\n"
        ((what, commands),) = self.advice(tmp_path, clock=(612000000,) * 2, swaps=half).items()
        assert what.startswith("4.0 GiB of swap on a disk: with 8 GiB")
        assert commands[0] == "sudo fallocate -l 4G /swapfile1"

    def test_a_jetpack_without_a_package(self, tmp_path: Path) -> None:
        release = "# R35 (release), REVISION: 4.1, GCID: 1\n"
        advice = self.advice(tmp_path, clock=(612000000,) * 2, swaps=self.disk, release=release)
        ((what, commands),) = advice.items()
        assert (
            "Jetson Linux 35.4.1; the package jetson-orin is built for 36; jetson-orin-jp7 is built for 39"
            in what
        )
        assert commands == ("trt-hspan plugin build --arch 87",)

    @pytest.mark.parametrize(
        ("release", "installed", "needed"),
        [("36", "jetson-orin-jp7", "jetson-orin"), ("39", "jetson-orin", "jetson-orin-jp7")],
    )
    def test_a_package_of_another_jetpack(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, installed: str, needed: str
    ) -> None:
        line = f"# R{release} (release), REVISION: 2.0, GCID: 1\n"
        monkeypatch.setattr(advice_module, "installed_package", lambda: installed)
        ((what, commands),) = self.advice(
            tmp_path, clock=(612000000,) * 2, swaps=self.disk, release=line
        ).items()
        assert f"Jetson Linux {release}.2.0; the package for it is {needed}, not {installed}" in what
        assert commands == (f"sudo apt install ./hspan-{needed}_{__version__}_arm64.deb",)
        monkeypatch.setattr(advice_module, "installed_package", lambda: needed)
        assert self.advice(tmp_path, clock=(612000000,) * 2, swaps=self.disk, release=line) == {}

    def test_the_package_is_known_by_its_manifest(self, tmp_path: Path) -> None:
        manifest = tmp_path / "share" / "hspan" / "package.json"
        assert installed_package(tmp_path / "venv") is None
        manifest.parent.mkdir(parents=True)
        manifest.write_text('{"target": {"name": "jetson-orin-jp7"}}')
        assert installed_package(tmp_path / "venv") is None  # no such environment
        (tmp_path / "venv").mkdir()
        assert installed_package(tmp_path / "venv") == "jetson-orin-jp7"
        manifest.write_text('["damaged"')
        assert installed_package(tmp_path / "venv") is None

    def test_larger_boards_and_other_machines_are_left_alone(self, tmp_path: Path) -> None:
        facts = device_from_root(write_jetson_root(tmp_path, clock=(918000000,) * 2))
        assert advice_for_board(board_from_name("orin-nx-16g"), facts) == []
        assert advice_for_board(self.nano, DeviceFacts(memory_bytes=8 * GIB)) == []
