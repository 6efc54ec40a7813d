// Which training examples moved a response, and a token of it.
function showLedger() {}

function showLedgerToken() {}
