// Runs once for each list. Buttons send their action and item to the server; after a list was drawn again, the keyboard
// focus returns to its element, or to the neighbour of a removed one.
let asked = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (!button) return;
  const place = [...element.querySelectorAll('button[data-action]')].indexOf(button);
  asked = {action: button.dataset.action, item: button.dataset.item, place};
  trigger('click', {action: button.dataset.action, item: button.dataset.item});
});
watch('value', () => {
  const list = element.querySelector('.answers');
  if (list && window.matchMedia('(max-width: 760px)').matches && !asked) list.scrollIntoView({block: 'start'});
  if (!asked || (document.activeElement && document.activeElement !== document.body)) { asked = null; return; }
  const buttons = [...element.querySelectorAll('button[data-action]')];
  const same = buttons.find((one) => one.dataset.action === asked.action && one.dataset.item === asked.item);
  const next = same || buttons[Math.min(asked.place, buttons.length - 1)] || document.querySelector('#find input, #find textarea');
  if (next) next.focus();
  asked = null;
});
