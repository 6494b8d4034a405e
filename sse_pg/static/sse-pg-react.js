// A React hook. What it does and when: docs/javascript.md. Types: sse-pg-react.d.ts.
import { useEffect, useRef, useState } from 'react'
import { listen } from './sse-pg.js'

/** Call `onEvent` for each event while the component is mounted. Returns the state of the connection. */
export function useEvents (url, options, onEvent) {
  const [status, setStatus] = useState({ state: 'connecting' })
  const latest = useRef()
  useEffect(() => { latest.current = { options, onEvent } }) // callbacks may be new functions in each render
  const { channels, userId, envelope, from, key, until, enabled = true } = options
  const identity = JSON.stringify([`${url}`, channels, userId, envelope, from, options.latest, key, until, enabled])

  useEffect(() => {
    if (!enabled) return
    const { options } = latest.current
    const own = new AbortController()
    const current = (state) => (details) => {
      if (own.signal.aborted) return // another stream has taken its place
      setStatus({ state, error: details?.error ?? (state === 'ended' ? details : undefined) })
      latest.current.options[`on${state === 'ended' ? 'End' : state === 'open' ? 'Open' : 'Lost'}`]?.(details)
    }
    setStatus({ state: 'connecting' })
    listen(url, {
      ...options,
      signal: own.signal,
      ...(options.snapshot && { snapshot: (signal) => latest.current.options.snapshot(signal) }),
      ...(typeof options.token === 'function' && { token: () => latest.current.options.token() }),
      onOpen: current('open'),
      onLost: current('lost'),
      ...(options.onDenied && { onDenied: (channels) => latest.current.options.onDenied?.(channels) }),
      onGap: (gap) => latest.current.options.onGap?.(gap),
      onFinished: (channel) => latest.current.options.onFinished?.(channel),
      onEnd: current('ended')
    }, (event) => latest.current.onEvent(event))
      .done.then(() => own.signal.aborted || setStatus({ state: 'ended' }), () => {})
    return () => own.abort()
  }, [identity])
  return status
}
