'use strict'
const { EventSource } = require('undici')
const { listen, url } = require('./common.cjs')

listen(new EventSource(url))
