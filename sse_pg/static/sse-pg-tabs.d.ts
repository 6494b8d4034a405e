/** A `fetch` for `subscribe`, `listen` and `useEvents`: tabs that ask for the same URL share one connection. */
export const acrossTabs: typeof fetch
