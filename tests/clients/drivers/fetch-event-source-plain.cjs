'use strict'
globalThis.window = globalThis
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} }
const { fetchEventSource } = require('@microsoft/fetch-event-source')
const { gaveUp, record, types, url } = require('./common.cjs')

fetchEventSource(url, {
  openWhenHidden: true,
  onmessage: ({ id, event, data }) => record(id, event || 'message', data),
  onclose: () => {
    if (types.includes('reopen')) throw new Error('the stream ended')
  }
}).then(() => gaveUp('the stream ended'), gaveUp)
