"""Where a run really ran: what was asked for, what the library says, and what was seen.

The badge::

    proven        the device the library names was seen at work for the worker
    claimed       the library names it, and nothing seen speaks for or against it
    contradicted  the library names another device than was asked for, one that this machine does not have, or one
                  that stood still while the worker kept the processor busy

What leaves the choice to the library may run on any of the devices that it names, and move after it was asked.

A contradicted run enters no median and no verdict.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engines.protocol import Claim, Loaded
from engines.telemetry.devices_seen import DevicesSeen

PROVEN, CLAIMED, CONTRADICTED = "proven", "claimed", "contradicted"
BADGES = (PROVEN, CLAIMED, CONTRADICTED)
OWN_CHOICE = ("AUTO", "HETERO", "MULTI", "BATCH")
"""Devices that leave the choice to the library."""
_HARDWARE = {"CPU": "CPU", "GPU": "GPU", "DML": "GPU", "CUDA": "GPU", "XPU": "GPU", "NPU": "NPU"}
"""What a device family of a library is, as the readings know it."""
WORKING_CORES = 0.05
"""A worker that keeps this much of a core busy computes on it, on a machine full of others too; a waiting one does
not."""
STANDING_IN_CORES = 0.5
"""This much while its accelerator stands still: the processor does the accelerator's work."""
BUSY_SHARE, IDLE_SHARE = 0.05, 0.01


@dataclass(frozen=True)
class Placement:
    """Where one run ran."""

    requested: str
    """As in the target."""
    claimed: str | None
    """Devices the library names, joined by commas."""
    observed: str | None
    """Devices seen at work for the worker; None: nothing could be seen."""
    badge: str | None
    """One of BADGES; None when nobody says anything and nothing was seen."""
    evidence: tuple[str, ...] = ()
    """What the badge rests on, a sentence each."""


def judge(requested: str, loaded: Loaded, cores: float | None, seen: DevicesSeen) -> Placement:
    """The placement of a run on `requested`; `cores`: what the worker kept busy of the processor, on average."""
    claim = loaded.claim or _told(loaded.device)
    evidence = [f"Asked for {requested}."]
    evidence.append(claim.evidence if claim else "The library does not say where it runs.")
    observed: list[str] = []
    if not _elsewhere(requested):
        observed = _observed(claim, cores, seen)
        evidence += _sights(cores, seen)
    badge, why = _badge(requested, claim, cores, seen)
    if why:
        evidence.append(why)
    return Placement(
        requested,
        ", ".join(claim.devices) if claim else None,
        ", ".join(observed) or None,
        badge,
        tuple(evidence),
    )


def family(device: str) -> str:
    """`GPU.1`, `cuda:0` -> `GPU`, `CUDA`."""
    return re.split(r"[.:\s(]", device.strip(), maxsplit=1)[0].upper()


def hardware(device: str) -> str | None:
    """CPU, GPU or NPU; None for what is none of them (a server)."""
    return _HARDWARE.get(family(device))


def _elsewhere(requested: str) -> bool:
    """Whether it is no device of this machine: a server's name."""
    return hardware(requested) is None and family(requested) not in OWN_CHOICE


def _told(device: str) -> Claim | None:
    """What `Loaded.device` says where the engine makes no claim of its own: `CPU (AMD EPYC)`."""
    named = [part.strip() for part in re.sub(r"\([^)]*\)?", "", device).split(",")]
    devices = tuple(part for part in named if part)
    return Claim(devices, f"The engine names {device} as its device.") if devices else None


def _observed(claim: Claim | None, cores: float | None, seen: DevicesSeen) -> list[str]:
    """What worked for the worker; an accelerator that is busy for somebody counts where the library names it."""
    possible = {*seen.by_process, *(hardware(device) for device in (claim.devices if claim else ()))}
    busy = [name for name, share in sorted(seen.busy.items()) if share >= BUSY_SHARE and name in possible]
    working = cores is not None and cores >= WORKING_CORES
    return busy or (["CPU"] if working else [])


def _sights(cores: float | None, seen: DevicesSeen) -> list[str]:
    found = []
    if cores is not None:
        found.append(f"The worker kept {cores:.2f} processor cores busy.")
    for name, share in sorted(seen.busy.items()):
        whose = "for the worker" if name in seen.by_process else "in all"
        found.append(
            f"The {name} was busy {share:.0%} of the time {whose} ({seen.sources.get(name, 'system')})."
        )
    return found


def _badge(
    requested: str, claim: Claim | None, cores: float | None, seen: DevicesSeen
) -> tuple[str | None, str | None]:
    if claim is None:
        return None, None
    if _elsewhere(requested):
        return None, "It runs on a server, whose devices cannot be seen from here."
    other = [device for device in claim.devices if not _same(requested, device)]
    left_to_it = family(requested) in OWN_CHOICE
    if other and not left_to_it:
        return CONTRADICTED, f"That is not what was asked for: {', '.join(other)} in place of {requested}."
    kinds = {hardware(device) for device in claim.devices}
    accelerators = sorted(kind for kind in kinds if kind not in (None, "CPU"))
    if not accelerators:
        return _on_the_processor(kinds, cores, seen, left_to_it=left_to_it)
    if any(seen.busy.get(name, 0.0) >= BUSY_SHARE for name in accelerators):
        return PROVEN, None
    busy_instead = cores is not None and cores >= STANDING_IN_CORES
    missing = [name for name in accelerators if seen.present is not None and name not in seen.present]
    if missing and cores is not None and cores >= WORKING_CORES:
        return CONTRADICTED, f"This machine has no {missing[0]}: the processor did the work."
    idle = [name for name in accelerators if seen.busy.get(name, 1.0) < IDLE_SHARE]
    may_be_processor = left_to_it and "CPU" in kinds
    if len(idle) == len(accelerators) and busy_instead and not may_be_processor:
        return CONTRADICTED, f"The {idle[0]} stood still while the processor worked."
    return CLAIMED, None


def _on_the_processor(
    kinds: set[str | None], cores: float | None, seen: DevicesSeen, *, left_to_it: bool
) -> tuple[str, str | None]:
    if kinds != {"CPU"}:
        return CLAIMED, None  # something we have no eyes for, such as a server
    elsewhere = [name for name in sorted(seen.by_process) if seen.busy.get(name, 0.0) >= BUSY_SHARE]
    if elsewhere and left_to_it:
        # AUTO begins on the processor, and moves when it has compiled for the better device.
        return CLAIMED, f"The library chose the {elsewhere[0]} after it was asked where it runs."
    if elsewhere:
        return CONTRADICTED, f"The worker used the {elsewhere[0]}, which the library does not name."
    return (PROVEN if cores is not None and cores >= WORKING_CORES else CLAIMED), None


def _same(requested: str, claimed: str) -> bool:
    """Whether a device is the one asked for: `GPU` is any GPU, `GPU.1` is that one."""
    if family(requested) != family(claimed):
        return False
    wanted, got = _number(requested), _number(claimed)
    return wanted is None or got is None or wanted == got


def _number(device: str) -> int | None:
    found = re.match(r"[A-Za-z]+[.:](\d+)", device.strip())
    return int(found.group(1)) if found else None
