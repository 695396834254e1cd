# A mail as it is sent by SMTP.

cpdef bytes make_content(bytes mime)
