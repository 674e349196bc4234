"""ICC profiles, drawn: color spaces of screens, of gray images and of a printer."""

import struct

import numpy as np

_D50 = (0.9642, 1.0, 0.8249)
_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
_SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def display_p3() -> bytes:
    """The wide color space of phones and screens; its curve is that of sRGB."""
    return _screen(_P3)


def srgb() -> bytes:
    """sRGB, in other bytes than any program writes."""
    return _screen(_SRGB)


def gray(gamma: float) -> bytes:
    """Gray values whose intensity is their power `gamma`."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve, b"wtpt": _xyz(_D50)})


def printer() -> bytes:
    """A CMYK profile of a printer whose colors depend on black alone, from lightness 100 to 0."""
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])  # channels in and out, nodes per channel
    table += b"".join(_fixed(float(row == column)) for row in range(3) for column in range(3))
    ramp = bytes(range(256))
    table += 4 * ramp + 8 * bytes([255, 128, 128, 0, 128, 128]) + 3 * ramp
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table, b"wtpt": _xyz(_D50)})


def _screen(colorants: tuple[tuple[float, float, float], ...]) -> bytes:
    level = np.linspace(0, 1, 1024)
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    values = np.round(linear * 65535).astype(">u2")
    curve = b"curv" + bytes(4) + struct.pack(">I", len(values)) + values.tobytes()
    tags = {bytes([letter]) + b"TRC": curve for letter in b"rgb"}
    tags |= {
        bytes([letter]) + b"XYZ": _xyz(colorant)
        for letter, colorant in zip(b"rgb", colorants, strict=True)
    }
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags | {b"wtpt": _xyz(_D50)})


def _profile(device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    start = 128 + 4 + 12 * len(tags)
    directory, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        directory += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4xI", start + len(body), 0x02400000) + device + space + connection
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += b"".join(map(_fixed, _D50))
    return header + bytes(128 - len(header)) + directory + body


def _xyz(color: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, color))


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))
