"""Tests of the guarantee under faults: transactions, restarts, lost connections, full disks."""
