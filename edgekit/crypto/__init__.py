"""Keys, signatures and encryption: the only package that imports `cryptography`.

keys       Ed25519 signing keys, HPKE sealing keys, the folder they live in
dsse       signed envelopes
sealing    a content key, encrypted to one recipient (HPKE, RFC 9180)
streaming  bulk encryption in Tink's AES256_GCM_HKDF_1MB format
x509       the fleet's own certificate authority
"""
