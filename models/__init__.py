"""The methods, and what they share. Pure numerical code: no file, server or network is touched from here."""
