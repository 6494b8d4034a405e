'use strict'
const { EventSource } = require('launchdarkly-eventsource')
const { gaveUp, listen, url } = require('./common.cjs')

const source = new EventSource(url)
listen(source)
source.onclosed = () => gaveUp('closed')
source.onerror = () => {} // it says so before it reconnects, too
