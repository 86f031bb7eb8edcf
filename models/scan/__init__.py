"""The recurrence h_t = u_t + lambda * h_{t-1} in many forms that compute the same numbers.

`step` moves one position and serves; `scan` moves whole sequences and trains. One file per form,
the slow truth first:

- `reference`: row by row, in double precision;
- `doubling`: the published form (Yue et al., WSDM 2024, section 3.3), kept to compare with;
- `loop`: one pass of torch operations; runs everywhere;
- `native`: C++ for the CPU, compiled on this machine, if somebody asks for it;
- `triton_scan`, `triton_kernels`: for CUDA.

`recurrence` chooses among the last three. State goes in and comes out as a value; nothing here
writes to what it was given.
"""

from models.scan.doubling import scan_doubling
from models.scan.layout import PackedLayout
from models.scan.recurrence import backend_for, scan, scan_time_major, step, use_backend
from models.scan.reference import scan_reference

__all__ = [
    "PackedLayout",
    "backend_for",
    "scan",
    "scan_doubling",
    "scan_reference",
    "scan_time_major",
    "step",
    "use_backend",
]
