'use strict'
const { EventSource } = require('eventsource')
const { listen, url } = require('./common.cjs')

listen(new EventSource(url))
