"""Everything that touches the outside world: settings, data versions, tracking, registry, ledger, stores."""
