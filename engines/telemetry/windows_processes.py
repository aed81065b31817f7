"""Every process and its processor time on Windows, through the documented calls: one tool-help snapshot for ids,
parents and names, and `GetProcessTimes` for each process that may be opened (all but the protected ones). psutil is
asked about the kernel's own process, which nobody may open:
https://learn.microsoft.com/windows/win32/api/processthreadsapi/nf-processthreadsapi-openprocess

psutil would ask the whole system again for every process it may not open, which takes a quarter of a second.
"""

from __future__ import annotations

import sys

Listed = tuple[int, int, str, float, float]
"""Process id, parent's id, name, moment of its start (seconds), processor seconds."""

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    import psutil

    _SYSTEM = 4
    """The kernel's own process, which OpenProcess refuses to everybody."""
    _SNAPSHOT_PROCESSES = 0x2
    _QUERY_LIMITED_INFORMATION = 0x1000
    _INVALID = ctypes.c_void_p(-1).value

    class _Entry(ctypes.Structure):
        """PROCESSENTRY32W of tlhelp32.h."""

        _fields_ = (
            ("dwSize", wintypes.DWORD),
            ("cntUsage", wintypes.DWORD),
            ("th32ProcessID", wintypes.DWORD),
            ("th32DefaultHeapID", ctypes.c_size_t),
            ("th32ModuleID", wintypes.DWORD),
            ("cntThreads", wintypes.DWORD),
            ("th32ParentProcessID", wintypes.DWORD),
            ("pcPriClassBase", wintypes.LONG),
            ("dwFlags", wintypes.DWORD),
            ("szExeFile", wintypes.WCHAR * 260),
        )

    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel.CreateToolhelp32Snapshot.restype = wintypes.HANDLE
    _kernel.CreateToolhelp32Snapshot.argtypes = (wintypes.DWORD, wintypes.DWORD)
    _kernel.Process32FirstW.argtypes = (wintypes.HANDLE, ctypes.POINTER(_Entry))
    _kernel.Process32NextW.argtypes = (wintypes.HANDLE, ctypes.POINTER(_Entry))
    _kernel.OpenProcess.restype = wintypes.HANDLE
    _kernel.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
    _kernel.GetProcessTimes.argtypes = (wintypes.HANDLE, *(ctypes.POINTER(wintypes.FILETIME),) * 4)
    _kernel.CloseHandle.argtypes = (wintypes.HANDLE,)

    def list_processes() -> list[Listed]:
        """Every process; of those that may not be opened the time is 0."""
        found: list[Listed] = []
        handle = _kernel.CreateToolhelp32Snapshot(_SNAPSHOT_PROCESSES, 0)
        if handle in (None, _INVALID):
            return found
        try:
            entry = _Entry(dwSize=ctypes.sizeof(_Entry))
            more = _kernel.Process32FirstW(handle, ctypes.byref(entry))
            while more:
                pid = int(entry.th32ProcessID)
                started, cpu_s = _times(pid) if pid != _SYSTEM else (0.0, _systems_s())
                name = str(entry.szExeFile)
                found.append((pid, int(entry.th32ParentProcessID), name, started, cpu_s))
                more = _kernel.Process32NextW(handle, ctypes.byref(entry))
        finally:
            _kernel.CloseHandle(handle)
        return found

    def _times(pid: int) -> tuple[float, float]:
        """When a process started and what processor time it has used, in seconds; 0 where it may not be asked."""
        handle = _kernel.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid) if pid else None
        if not handle:
            return 0.0, 0.0
        try:
            created, exited, kernel, user = (wintypes.FILETIME() for _ in range(4))
            pointers = (ctypes.byref(moment) for moment in (created, exited, kernel, user))
            if not _kernel.GetProcessTimes(handle, *pointers):
                return 0.0, 0.0
            return _seconds(created), _seconds(kernel) + _seconds(user)
        finally:
            _kernel.CloseHandle(handle)

    def _systems_s() -> float:
        """Processor seconds of the kernel's own process: they are nobody's, and would else seem another program's."""
        try:
            times = psutil.Process(_SYSTEM).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def _seconds(moment: wintypes.FILETIME) -> float:
        """A FILETIME counts tenths of a microsecond in two halves."""
        return ((int(moment.dwHighDateTime) << 32) | int(moment.dwLowDateTime)) / 1e7

else:

    def list_processes() -> list[Listed]:
        raise OSError("Only Windows has these calls.")
