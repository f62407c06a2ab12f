"""Records and what is made of them: computed elsewhere, worded here."""
