// Light, dark, or the same as the system; the choice is remembered.

const NAMES = ['auto', 'light', 'dark']
const button = document.getElementById('theme')

function show (name) {
  if (name === 'auto') delete document.documentElement.dataset.theme
  else document.documentElement.dataset.theme = name
  button.textContent = `Theme: ${name}`
  button.ariaLabel = `Theme: ${name === 'auto' ? 'same as the system' : name}`
  return name
}

function remembered () {
  try {
    return NAMES.find((name) => name === localStorage.getItem('sse-pg.theme')) ?? 'auto'
  } catch {
    return 'auto' // storage may be forbidden
  }
}

let theme = show(remembered())
button.addEventListener('click', () => {
  theme = show(NAMES[(NAMES.indexOf(theme) + 1) % NAMES.length])
  try {
    localStorage.setItem('sse-pg.theme', theme)
  } catch {}
})
