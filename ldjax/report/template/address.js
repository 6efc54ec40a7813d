// What is chosen stands in the address, so that it can be linked to.
function fromAddress() {
  const found = new URLSearchParams(location.hash.slice(1));
  return location.hash.includes("=") ? Object.fromEntries(found) : {};
}

function toAddress(chosen) {
  const given = Object.entries(chosen).filter(([, value]) => value !== undefined);
  const hash = `#${new URLSearchParams(given)}`;
  if (hash !== location.hash) history.replaceState(null, "", hash);
}

