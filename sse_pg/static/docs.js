// /docs: the description at openapi.json as a page. It supports only those parts of OpenAPI that this description uses.

import { element } from './rows.js'
import './theme.js'

const METHODS = ['get', 'post', 'put', 'patch', 'delete']
const description = await (await fetch(new URL('openapi.json', document.baseURI))).json()

function resolve (node) {
  if (!node?.$ref) return node
  const parts = node.$ref.slice(2).split('/').map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'))
  return resolve(parts.reduce((at, part) => at[part], description))
}

function nameOf (node) {
  return node?.$ref?.split('/').at(-1)
}

/** Paragraphs, lists and code of Markdown, which is all that the description uses. */
function prose (text = '') {
  return text.split('\n\n').map((paragraph) => {
    const lines = paragraph.split('\n')
    if (!lines.every((line) => line.startsWith('- '))) return inline(element('p'), paragraph)
    const list = element('ul')
    list.append(...lines.map((line) => inline(element('li'), line.slice(2))))
    return list
  })
}

function inline (into, text) {
  text.split('`').forEach((part, place) => into.append(place % 2 ? element('code', '', part) : part))
  return into
}

function code (text) {
  const block = element('pre')
  block.tabIndex = 0 // it scrolls
  block.append(element('code', '', text))
  return block
}

function shown (example) {
  return typeof example === 'string' ? example : JSON.stringify(example, null, 2)
}

function examplesOf (media) {
  if (media.example !== undefined) return [['', media.example]]
  return Object.values(media.examples ?? {}).map(({ summary, value }) => [summary ?? '', value])
}

/** A short description of the values that a schema allows. */
function kind (schema) {
  const name = nameOf(schema)
  if (name) return name
  if (!schema || Object.keys(schema).length === 0) return 'any JSON'
  if (schema.const !== undefined) return JSON.stringify(schema.const)
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(' or ')
  const choices = schema.oneOf ?? schema.anyOf
  if (choices) return choices.map(kind).join(' or ')
  if (schema.type === 'array') return `array of ${kind(schema.items)}`
  let text = [schema.type ?? 'any JSON'].flat().join(' or ')
  const low = schema.minimum ?? schema.minLength
  const high = schema.maximum ?? schema.maxLength
  const unit = schema.maxLength ?? schema.minLength ? ' characters' : ''
  if (low !== undefined && high !== undefined) text += `, ${low} to ${high}${unit}`
  else if (high !== undefined) text += `, at most ${high}${unit}`
  if (schema.default !== undefined) text += `; default ${schema.default}`
  return text
}

function table (heads, rows) {
  const around = element('div', 'table')
  const made = around.appendChild(element('table'))
  const head = made.createTHead().insertRow()
  for (const text of heads) head.append(Object.assign(element('th', '', text), { scope: 'col' }))
  const body = made.createTBody()
  for (const cells of rows) {
    const row = body.insertRow()
    for (const cell of cells) row.insertCell().append(...[cell].flat())
  }
  return around
}

function properties (schema) {
  const found = resolve(schema)
  const choices = found?.oneOf ?? found?.anyOf
  if (choices) return properties(choices.find((each) => resolve(each).properties))
  if (!found?.properties) return []
  return [table(['field', 'type', ''], Object.entries(found.properties).map(([name, each]) => [
    element('code', '', name + (found.required?.includes(name) ? '' : '?')), kind(each), prose(each.description ?? resolve(each)?.description)]))]
}

function quoted (text) {
  return `'${text.replaceAll("'", `'\\''`)}'`
}

/** A curl command to copy and paste. */
function curl (path, method, operation) {
  const parameters = (operation.parameters ?? []).map(resolve)
  const given = parameters.filter((each) => each.example !== undefined && (each.required || each.in === 'query'))
  const query = given.filter((each) => each.in === 'query' && !/^(lastEventID|last_event_id|after|before)$/.test(each.name))
    .map(({ name, example }) => `${name}=${[example].flat().map((value) => encodeURIComponent(value)).join(',')}`).join('&')
  const filled = path.replace(/\{(\w+)\}/g, (_, name) => given.find((each) => each.name === name)?.example ?? name)
  const address = new URL(filled.slice(1) + (query ? `?${query}` : ''), document.baseURI)
  const stream = Object.values(operation.responses).some((each) => resolve(each).content?.['text/event-stream'])
  const words = [`curl -s${stream ? 'N' : ''} ${quoted(address.href)}`]
  if (description.security || operation.security?.some((each) => Object.keys(each).length)) words.push('-H "Authorization: Bearer $TOKEN"')
  const json = resolve(operation.requestBody)?.content?.['application/json']
  if (json) {
    words.push("-H 'Content-Type: application/json'")
    words.push(`-d ${quoted(JSON.stringify(examplesOf(json)[0]?.[1] ?? {}))}`)
  } else if (method !== 'get') words.push(`-X ${method.toUpperCase()}`)
  return words.join(' \\\n  ')
}

function bodies (content = {}) {
  return Object.entries(content).flatMap(([type, media]) => [
    inline(element('p'), `\`${type}\`${media.schema && Object.keys(media.schema).length ? `: ${kind(media.schema)}` : ''}`),
    ...properties(media.schema),
    ...examplesOf(media).flatMap(([title, example]) => [...(title ? [element('p', 'soft', title)] : []), code(shown(example))])
  ])
}

function article (path, method, operation) {
  const made = element('article')
  made.id = operation.operationId
  const title = made.appendChild(element('h2'))
  title.append(element('span', `method ${method}`, method.toUpperCase()), element('span', '', path))
  made.append(inline(element('p'), operation.summary ?? ''), ...prose(operation.description))
  const parameters = (operation.parameters ?? []).map(resolve)
  if (parameters.length) {
    made.append(element('h3', '', 'Parameters'), table(['name', 'type', ''], parameters.map((each) => [
      element('code', '', each.name), `${each.in}${each.required ? ', required' : ''}: ${kind(each.schema)}`, prose(each.description ?? resolve(each.schema)?.description)])))
  }
  const body = resolve(operation.requestBody)
  if (body) made.append(element('h3', '', 'Request body'), ...prose(body.description), ...bodies(body.content))
  made.append(element('h3', '', 'With curl'), code(curl(path, method, operation)))
  made.append(element('h3', '', 'Responses'))
  for (const [status, answer] of Object.entries(operation.responses)) {
    const { description: text, content, headers } = resolve(answer)
    const details = made.appendChild(element('details'))
    details.open = status.startsWith('2')
    const summary = details.appendChild(element('summary'))
    inline(summary, `\`${status}\` ${(text ?? '').split('\n\n')[0]}`)
    details.append(...prose((text ?? '').split('\n\n').slice(1).join('\n\n')).filter((each) => each.textContent))
    if (headers) {
      details.append(table(['header', ''], Object.entries(headers).map(([name, each]) => [element('code', '', name), prose(resolve(each).description)])))
    }
    details.append(...bodies(content))
  }
  return made
}

document.getElementById('version').textContent = description.info.version
document.getElementById('about').append(...prose(description.info.description))
const contents = document.getElementById('contents')
const operations = Object.entries(description.paths).flatMap(([path, item]) =>
  METHODS.filter((method) => item[method]).map((method) => ({ path, method, operation: item[method] })))
for (const tag of description.tags) {
  const own = operations.filter(({ operation }) => operation.tags?.[0] === tag.name)
  if (!own.length) continue
  contents.append(element('h2', '', tag.description ?? tag.name))
  for (const { path, method, operation } of own) {
    const link = element('a')
    link.href = `#${operation.operationId}`
    link.append(element('span', `method ${method}`, method.toUpperCase()), element('span', '', path))
    contents.append(link)
    document.getElementById('endpoints').append(article(path, method, operation))
  }
}
// The browser looked for this element before it existed.
document.getElementById(location.hash.slice(1))?.scrollIntoView()
