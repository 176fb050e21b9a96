"""One module a stage: load by reference, call one method, log, save, return references. No mathematics here."""
