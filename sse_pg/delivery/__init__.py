"""From the log to the streams: the tail, the hub, replay, heartbeats."""
