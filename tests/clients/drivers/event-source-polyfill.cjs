'use strict'
console.error = () => {} // it logs every lost connection
const { EventSourcePolyfill } = require('event-source-polyfill')
const { listen, url } = require('./common.cjs')

listen(new EventSourcePolyfill(url))
