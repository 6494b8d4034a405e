'use strict'
// Keeps balances with sse-pg.js: arguments are the stream and the snapshot. Prints what it has after each event.
const { readFileSync } = require('node:fs')
const { join } = require('node:path')

async function main () {
  const source = readFileSync(join(__dirname, '../../../sse_pg/static/sse-pg.js'))
  const { subscribe } = await import(`data:text/javascript;base64,${source.toString('base64')}`)
  const [stream, state] = process.argv.slice(2)
  const snapshot = async (signal) => (await fetch(state, { signal })).json()
  let balances, snapshots = 0
  for await (const { type, data } of subscribe(stream, { snapshot })) {
    if (type === 'sse-pg.snapshot') {
      balances = data
      snapshots++
    } else balances[data.id] += data.by
    console.log(JSON.stringify({ snapshots, balances }))
  }
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
