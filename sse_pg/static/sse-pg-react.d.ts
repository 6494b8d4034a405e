import type { StreamEvent, StreamOptions } from './sse-pg.js'

export interface EventsStatus {
  /** "lost": it reconnects. "ended": the server refused for good, or `onEvent` threw, or without an error, its channels are finished (`until`); it does not reconnect. */
  state: 'connecting' | 'open' | 'lost' | 'ended'
  error?: unknown
}

/**
 * Call `onEvent` for each event while the component is mounted. A new stream is opened if `url`, `channels`, `userId`,
 * `envelope`, `from`, `key`, `until` or `enabled` change; other options may be new objects and functions in each render.
 */
export function useEvents<T = unknown> (
  url: string | URL,
  options: Omit<StreamOptions, 'signal'> & { enabled?: boolean },
  onEvent: (event: StreamEvent<T>) => void | Promise<void>
): EventsStatus
