'use strict'
globalThis.window = globalThis // it is made for browsers
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} }
const { fetchEventSource } = require('@microsoft/fetch-event-source')
const { gaveUp, record, url } = require('./common.cjs')

// It takes an event's id when that line comes, not when the event is complete: a cut between loses the event.
// So this keeps the id of the last complete event and sends that.
let lastEventId = ''

fetchEventSource(url, {
  openWhenHidden: true,
  fetch: (input, { headers: { 'last-event-id': _, ...headers }, ...init }) =>
    fetch(input, { ...init, headers: lastEventId ? { ...headers, 'last-event-id': lastEventId } : headers }),
  onmessage: ({ id, event, data }) => {
    if (id) lastEventId = id
    record(id, event || 'message', data)
  },
  onclose: () => {
    throw new Error('the stream ended') // otherwise a stream that ends in good order is not opened again
  }
}).catch(gaveUp)
