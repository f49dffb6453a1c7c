// Long tables can be sorted by a click on a column's head and filtered; without JavaScript they are plain tables.
const SORTED_FROM = 6; // rows
const FILTERED_FROM = 30;
const ROWS_PER_CHOICE = 4; // at least, in a column whose values are offered as choices

const text = (row, column) => row.cells[column].textContent.trim();
const numeric = (value) => /^[\d.]/.test(value) && !/^\d[\d.]* x /.test(value);
const byName = new Intl.Collator('en', { numeric: true });

function compare(a, b) {
  if (numeric(a) && numeric(b)) return parseFloat(a.replaceAll(',', '')) - parseFloat(b.replaceAll(',', ''));
  return byName.compare(a, b);
}

function makeSortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement('button');
    button.className = 'sort';
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const order = head.ariaSort === 'ascending' ? 'descending' : 'ascending';
      for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', order);
      const sign = order === 'ascending' ? 1 : -1;
      const rows = [...body.rows].map((row) => [text(row, column), row]);
      // Empty cells come last in both orders.
      rows.sort(([a], [b]) => (a === '') - (b === '') || sign * compare(a, b));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

function labelled(name, field) {
  const label = document.createElement('label');
  label.append(name, field);
  return label;
}

function makeFilterable(table) {
  const rows = [...table.tBodies[0].rows];
  const bar = document.createElement('form');
  bar.className = 'table-filter';
  bar.addEventListener('submit', (event) => event.preventDefault());
  const words = document.createElement('input');
  words.type = 'search';
  bar.append(labelled('contains', words));

  const choices = [];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const values = [...new Set(rows.map((row) => text(row, column)))].filter(Boolean).sort(compare);
    const short = values.every((value) => value.length <= 32);
    if (column === 0 || values.length < 2 || ROWS_PER_CHOICE * values.length > rows.length || !short) return;
    const select = document.createElement('select');
    select.append(new Option('all', ''), ...values.map((value) => new Option(value)));
    choices.push([select, column]);
    bar.append(labelled(head.textContent.trim(), select));
  });

  const count = document.createElement('output');
  bar.append(count);
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      const line = row.textContent.toLowerCase();
      const fits = choices.every(([select, column]) => !select.value || text(row, column) === select.value);
      row.hidden = !(fits && wanted.every((word) => line.includes(word)));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  bar.addEventListener('input', filter);
  filter();
  (table.closest('.md-typeset__scrollwrap') ?? table).before(bar);
  table.dataset.long = ''; // style.css keeps its rows to one line
}

for (const table of document.querySelectorAll('article table:not([class])')) {
  const rows = table.tBodies[0]?.rows.length ?? 0;
  if (!table.tHead) continue;
  if (rows >= FILTERED_FROM) makeFilterable(table);
  if (rows >= SORTED_FROM) makeSortable(table);
}
