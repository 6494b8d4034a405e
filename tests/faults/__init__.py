"""Tests of what the bus promises, under everything that can get between: transactions, restarts, cuts, full disks."""
