'use strict'
// The module that the server itself hands out, loaded from the server under test's own files.
const { gaveUp, record, url } = require('./common.cjs')
const { readFileSync } = require('node:fs')
const { join } = require('node:path')

async function main () {
  // A data: URL, since the file stands in no package that says "type": "module".
  const source = readFileSync(join(__dirname, '../../../sse_pg/static/sse-pg.js'))
  const { subscribe } = await import(`data:text/javascript;base64,${source.toString('base64')}`)
  const options = {
    onOpen: ({ id }) => record(id, 'sse-pg.hello', '{}'),
    onGap: (gap) => record('', 'sse-pg.gap', JSON.stringify(gap))
  }
  for await (const { id, type, text } of subscribe(url, options)) record(id, type, text)
}

main().catch((error) => gaveUp(error.message))
