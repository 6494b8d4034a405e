/** An event of a stream. With `envelope`, `type` is "message" and `data` the whole event. */
export interface StreamEvent<T = unknown> {
  /** The cursor behind this event, opaque: hand it back as it came. */
  id: string
  type: string
  data: T
  /** The data as it came, for numbers that a double cannot hold. */
  text: string
}

/** What can no longer be delivered lies between the cursors `after` and `before`. */
export interface Gap {
  reason: 'expired' | 'unknown'
  after: string
  before: string
}

export interface StreamOptions {
  channels?: string[]
  userId?: string | number
  /** Each event as `{id, channel, eventType, payload, createdAt}`. */
  envelope?: boolean
  /** The cursor to begin at: "0" is all that is retained. Without it, and without a stored one: from now on. */
  from?: string
  /** A bearer token, or a function that returns one; it is called for each connection, and again after a 401. */
  token?: string | (() => string | undefined | Promise<string | undefined>)
  headers?: HeadersInit
  credentials?: RequestCredentials
  /** Where in `storage` the cursor is kept, so that the next page goes on where this one was left. */
  key?: string
  /** sessionStorage unless given. */
  storage?: Pick<Storage, 'getItem' | 'setItem'>
  signal?: AbortSignal
  /** Milliseconds without a byte after which the connection is made anew; 45000, three heartbeats. */
  silence?: number
  /** A stream is open at the cursor `id`; `resumed` is the one that was asked for, "" when it began anew. */
  onOpen?: (opened: { id: string, resumed: string }) => void
  /** A connection is lost; the next is made after `pause` milliseconds. */
  onLost?: (lost: { error: Error, pause: number }) => void
  onGap?: (gap: Gap) => void
  fetch?: typeof fetch
}

/** An answer that is no stream. It is thrown where there is no use in coming back, else told to `onLost`. */
export class StreamError extends Error {
  readonly status: number
  readonly problem?: { type: string, title: string, status: number, detail: string, errors?: Array<{ field: string, detail: string }> }
}

/** Follow a stream, over any number of connections, until the signal aborts or the loop is left. */
export function subscribe<T = unknown> (url: string | URL, options?: StreamOptions): AsyncGenerator<StreamEvent<T>, void, void>

/** The same with a function for each event. */
export function listen<T = unknown> (
  url: string | URL,
  options: StreamOptions,
  onEvent: (event: StreamEvent<T>) => void | Promise<void>
): { close: () => void, done: Promise<void> }
