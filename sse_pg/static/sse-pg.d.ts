/** An event of a stream. With `snapshot`, the type "sse-pg.snapshot" has the state as `data`, and no `number` and `text`. With `envelope`, `type` is "message" and `data` the whole event. */
export interface StreamEvent<T = unknown> {
  /** The cursor after this event. It is opaque: send it back unchanged. It can differ between servers. */
  id: string
  /** The event's own id, the same on every server. */
  number: number
  type: string
  data: T
  /** The data as received, for numbers that a double cannot hold. */
  text: string
}

/** The data of an event with `envelope: true`. */
export interface Envelope<T = unknown> {
  id: number
  channel: string
  eventType: string
  payload: T
  /** Facts about the event, such as `traceparent` and `publisher`; undefined if it has none. */
  headers?: Record<string, unknown>
  createdAt: string
}

/** The events between the cursors `after` and `before` can no longer be delivered. */
export interface Gap {
  reason: 'expired' | 'unknown'
  after: string
  before: string
}

export interface StreamOptions {
  channels?: string[]
  userId?: string | number
  /** The whole event as `data`: an `Envelope`, or a CloudEvent. */
  envelope?: boolean | 'cloudevents'
  /**
   * The cursor to start at, also if there is a stored one; "0" means everything that is retained. Without it and without
   * a stored cursor, the stream starts now.
   */
  from?: string
  /** Without a cursor: begin with so many of the last events of each channel, 1 to 1000. */
  latest?: number
  /**
   * Returns a state and its position (`sse_pg.position()`). It is called at the start and after each gap. The state is
   * yielded as an event of the type "sse-pg.snapshot", and then what comes after it. If it throws, that is a lost
   * connection: `onLost`, and another attempt. Not with `from` or `key`.
   */
  snapshot?: (signal: AbortSignal) => Promise<{ state: unknown, position: string | number }>
  /**
   * "end": the stream ends when each of its `channels` is finished. Then the loop of `subscribe` ends, and `done` of
   * `listen` resolves.
   */
  until?: 'end'
  /** A bearer token, or a function that returns one; it is called for each connection, and again after a 401. */
  token?: string | (() => string | undefined | Promise<string | undefined>)
  headers?: HeadersInit
  credentials?: RequestCredentials
  /** The key in `storage` under which the cursor is saved, so that the next page continues where this one stopped. */
  key?: string
  /** The default is sessionStorage. */
  storage?: Pick<Storage, 'getItem' | 'setItem'>
  signal?: AbortSignal
  /** Milliseconds without any data after which it reconnects; the default is 45000, three heartbeats. */
  silence?: number
  /** A stream is open at the cursor `id`; `resumed` is the requested cursor, or "" if the stream starts now. */
  onOpen?: (opened: { id: string, resumed: string }) => void
  /** The connection was lost; the next attempt is after `pause` milliseconds. */
  onLost?: (lost: { error: Error, pause: number }) => void
  onGap?: (gap: Gap) => void
  /** A channel was finished: `sse_pg.finish()`. A later event opens it again. */
  onFinished?: (channel: string) => void
  /**
   * Called with the channels that are not allowed. With it, the stream carries the others, also if a channel is revoked
   * while it is open. Without it, or if none is allowed, that is a StreamError with the status 403.
   */
  onDenied?: (channels: string[]) => void
  /** Called by `listen()` if it has ended with an error and does not reconnect. The default is `console.error`. */
  onEnd?: (error: unknown) => void
  fetch?: typeof fetch
}

/** A response that is not a stream. It is thrown if reconnecting is pointless; otherwise it is passed to `onLost`. */
export class StreamError extends Error {
  readonly status: number
  readonly problem?: { type: string, title: string, status: number, detail: string, errors?: Array<{ field: string, detail: string }> }
}

/** Follow a stream, over any number of connections, until the signal aborts, the loop ends, or its channels do (`until`). */
export function subscribe<T = unknown> (url: string | URL, options?: StreamOptions): AsyncGenerator<StreamEvent<T>, void, void>

/** The same with a callback for each event. */
export function listen<T = unknown> (
  url: string | URL,
  options: StreamOptions,
  onEvent: (event: StreamEvent<T>) => void | Promise<void>
): { close: () => void, done: Promise<void> }
