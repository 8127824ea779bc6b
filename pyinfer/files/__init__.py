"""Files where systems differ: opening, locks, reads and writes at a place, a new file in the place of an old one.

Knows descriptors and paths; must not know what the files hold. One file a system, with the same functions:

- `open_to_read(path)`: a descriptor; does not wait for whoever writes to a FIFO.
- `open_locked(path)`: a descriptor to write to, the file made if need be; BlockingIOError where another holds its lock.
- `lock(descriptor)`: waits for the lock of a file. The system frees a lock when the file is closed or its owner dies.
- `read_at(descriptor, view, offset)`: as many bytes as were read, 0 at the end; for several threads at once.
- `write_at(descriptor, views, offset)`: as many bytes as were written, of one or more views that are not empty, one
  behind the other; likewise.
- `publish(descriptor, temporary, output)`: puts a locked file, written and synchronised, in the place of `output`, and
  closes it. Whatever happens, `output` is the old file or the whole new one, and `temporary` is gone.
- `replace(temporary, output)`: puts a closed file in the place of `output`.
- `discard(descriptor, temporary)`: removes a locked file, and closes it.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from pyinfer.files.windows import (
        discard,
        lock,
        open_locked,
        open_to_read,
        publish,
        read_at,
        replace,
        write_at,
    )
else:
    from pyinfer.files.posix import (
        discard,
        lock,
        open_locked,
        open_to_read,
        publish,
        read_at,
        replace,
        write_at,
    )

__all__ = ["discard", "lock", "open_locked", "open_to_read", "publish", "read_at", "replace", "write_at"]
