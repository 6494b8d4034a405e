'use strict'
const { createEventSource } = require('eventsource-client')
const { record, url } = require('./common.cjs')

createEventSource({
  url,
  onMessage: ({ id, event, data }) => record(id ?? '', event ?? 'message', data)
})
